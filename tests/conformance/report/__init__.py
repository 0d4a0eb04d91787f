"""From results to what people and programs read.

run          a run as console text, JSON, JUnit XML and Markdown
crash        a crash exploration as console text, JSON and a page
matrix       a matrix as console text, JSON, Markdown and a page
explain      a clause and all that stands behind it
markup       text becomes HTML
page         the page that a browser shows; page.css and page.js are parts of each
stored       a report as it lies in a folder, and what it says by the specification of today
form         what a report needs to be shown
compact      the form in which reports are kept
manager      the page of one manager
failures     what fails in one manager, as Markdown
table        several managers side by side
badge        one line about one manager
findings     the pages about failures of released managers
schema.json  the form of a run's JSON
"""
