"""What the lock manager costs: messages, transitions, and locks over real sockets beside etcd's."""
