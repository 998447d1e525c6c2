"""Folds a streamed answer into the whole answer that the same request without a stream would get.

llama-server notices within a token that the client of a stream left, and of a whole answer perhaps
only at its end. So the gateway asks for a stream also where its client did not, and folds it.

Pure: the gateway does the asking and the sending. :mod:`fold` is the way in; one module for each
API knows its events.

What differs from the whole answer: ids, times, and figures of speed. Beyond that:

* ``Fold.is_exact`` tells of an answer of which the stream did not tell all. The best that can be
  made of it is there, and the engine can be asked once more, without a stream.
* A limit (of tokens or of the context) that falls into a character: the rest of a token that holds
  the first part of it is not streamed. Where the whole answer has that rest as U+FFFD, so has the
  folded one, but not what the same token holds before the character, such as a space. After bytes
  that are no UTF-8 at all, several such tokens may be missing.
"""
