"""What Swarm answers over HTTP: one file a resource. A handler parses, calls one thing, renders."""
