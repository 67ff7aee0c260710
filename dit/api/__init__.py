"""The Python interface: pipelines, training and evaluation of `import dit`."""
