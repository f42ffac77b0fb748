"""What Swarm answers over HTTP: one file a resource, each with its routes. A handler parses, calls one thing, renders."""
