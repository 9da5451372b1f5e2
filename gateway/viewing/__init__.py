"""What is there for people to look at: rates of the last hour, previews of jobs, a search through captions."""
