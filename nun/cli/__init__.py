"""The `nun` command: a thin skin over the client library; what it can do, a program can do with `import nun`."""
