"""A POSIX cluster filesystem in user space over a distributed lock manager."""
