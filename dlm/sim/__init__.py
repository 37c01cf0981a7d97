"""The other shell: a whole cluster of lock managers in one thread under one seed."""
