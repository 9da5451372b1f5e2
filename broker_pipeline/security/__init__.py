"""Who may do what: certificates and credentials of roles and hosts, the table of their rights, what servers are told."""
