"""Who may do what: certificates and credentials of hosts and roles, the table of their rights, servers' settings."""
