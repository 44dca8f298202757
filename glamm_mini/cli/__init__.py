"""The command `glamm-mini`: main.py lists the commands, one file holds each."""
