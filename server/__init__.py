"""The process: settings, resources in the order they start, routes, logs, and the one shape of every error."""
