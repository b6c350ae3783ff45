"""The brain of shopcrawl: decides what to fetch, when, and whether it was enough."""
