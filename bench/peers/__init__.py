"""What others would use for the same work: each the honest program of a competent user, run by the bench beside Swarm."""
