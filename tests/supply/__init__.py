"""What Swarm is made of: the lock, read as `make lock` writes it, a bill of materials, and an audit."""
