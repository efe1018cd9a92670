"""`plmjax doctor`: reports problems of a machine before a run fails on them."""
