"""The journal of a shard: every applied update as after-images, written before it is acknowledged.

frames     what stands in a journal, as bytes             changes   what an update changed, to frames
segments   the files of a journal: found, checked, cut    writer    the thread that writes them
snapshot   all rows, so that older journal can go         lock      one process a folder, the last one wins
recovery   from the files back to a shard's state        replay    frame by frame into its tables
stream     the same frames to a standby                  filling   all rows to a new one
standby    what takes them there                         role      which of a pair's folders counts
"""
