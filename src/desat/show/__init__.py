"""Show: a record and its findings become something a person looks at."""
