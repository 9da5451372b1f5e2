"""What both kinds of workers share: their life, their presence, their one compute thread."""
