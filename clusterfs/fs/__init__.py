"""What POSIX means: names, files, attributes, handles; and which lock lets what be cached."""
