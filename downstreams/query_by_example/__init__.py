"""Query by example: which recordings hold what is said in a spoken query, and where?"""
