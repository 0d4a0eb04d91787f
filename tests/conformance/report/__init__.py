"""From results to what people and programs read.

run          a run as console text, JSON, JUnit XML and Markdown
crash        a crash exploration as console text, JSON and a page
matrix       a matrix as console text, JSON, Markdown and a page
explain      a clause and all that stands behind it
page         the page that a browser shows
schema.json  the form of a run's JSON
"""
