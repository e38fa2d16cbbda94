"""The wire: settings, server, servicers and the queue between them and the compute."""
