"""What libraries give us, written from scratch to be read: the notebooks build it, tests hold it to the library."""
