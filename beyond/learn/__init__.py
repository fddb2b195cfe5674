"""Training: from a text and a loss to the weights that did best on held-out data.

corpora and sequences: from a text to batches; learner, losses and precision: the model in training; loop, optimizers
and state: the loop and how it resumes; plan: estimates of time and memory; adapting: what finetune and classify share.
"""
