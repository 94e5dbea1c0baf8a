"""Files of every kind: where they are, and how they are read without trusting them.

failures.py     errors of the operating system as one line
locations.py    local paths and URIs; what a path in data may be; atomic writes
tables.py       Parquet, without types that run code
small_files.py  JSON and YAML that this package wrote: damage is one clear line
import_path.py  from where this program's processes import

Its modules are imported one by one: processes that only decode do without pyarrow.
"""
