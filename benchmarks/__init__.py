"""Speed, beside peers and the machine's own limit: python -m benchmarks"""
