"""What a test finds out, and what that says of each clause.

files     files that a user named: how they are read and written
judge     what one test expected, what it has seen, how often each situation arose
text      how texts are laid out for people
verdicts  one verdict per clause out of all findings; expected failures; the exit status
"""
