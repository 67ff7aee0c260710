"""Wrong and hostile uses of every command, and what each must print: see `make test-misuse`."""
