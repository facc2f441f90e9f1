"""Pictures and captions to arrays: listing, framing, the sample stream, the cache, batches.

Never imports MindSpore, nor any other room.
"""
