"""Who calls, and whether they may: keys, scopes, tenants, limits of keys, and web pages of other sites."""
