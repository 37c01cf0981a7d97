"""What clusterfs-lockdump makes of the locks that nodes describe; PURE but for the tables."""
