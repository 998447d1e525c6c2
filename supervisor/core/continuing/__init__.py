"""Goes on with a streamed answer whose engine ended, so that the client sees one whole stream.

Pure: the gateway does the waiting and the sending. :mod:`transcript` is the way in; one module for
each API knows its events, and the requests that ask for the rest of an answer.

What is exact, and what is not, after a cut:

* Text: nothing that was sent is lost, doubled or changed. What follows is what llama-server answers
  to the request plus the text so far. It tokenises that text anew, and draws anew from the same
  seed, so without a temperature of 0 it need not be what the first engine would have said.
* Tokens: where the engine tells how many it has generated (all but Anthropic's messages), the
  totals and the rest of the budget are exact up to the last text that was sent. A token that was
  generated but held back (a part of a character, of a stop word or of a tag) is generated again
  and counts once. Only where a tag begins within a token whose first part was sent does that token
  count twice.
* Anthropic's messages: tokens are counted from the text, so totals and budget are a few tokens off
  where a model does not tokenise its own text the way it wrote it.
* An answer whose end was being sent when it was cut, and its usage not yet: what was generated
  after its last text (the end-of-text token, a stop word, the end of a tool call) is taken for one
  token.
* Prompts given as numbers of tokens, on a vocabulary that puts a space before every text: the model
  sees one space more at the cut, the client does not.
* A template with reasoning, in an answer without: llama-server puts an empty reasoning before the
  text that it continues.
* ``timings`` after a cut are those of the last engine alone.
"""
