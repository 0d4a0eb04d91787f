"""From what tests found out to what people read.

verdicts     one verdict per clause, computed from the tests' findings; expected failures; the exit status
render       the same report as console text, JSON, JUnit XML and Markdown
schema.json  what the JSON looks like
"""
