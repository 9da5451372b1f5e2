"""Who may do what: credentials of roles and hosts, the table of their rights, and the servers' configurations."""
