"""The base of every optimizer, by subject: see optimizer.py first."""
