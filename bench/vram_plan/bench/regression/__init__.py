"""Did a change make fine-tuning slower or fatter? Decisions that CI can trust.

``rules`` decides on numbers alone; ``simulate`` shows how often it is wrong; ``series`` reads the
stored runs; ``check`` puts them together.
"""
