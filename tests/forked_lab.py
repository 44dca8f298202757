"""JupyterLab whose kernels are forked: python forked_lab.py OPTIONS, the options of `jupyter lab`."""

from forked import forked_kernels
from jupyterlab.labapp import main

if __name__ == "__main__":
    with forked_kernels():
        main()
