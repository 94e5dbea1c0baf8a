"""The parts of the stages that run on Ray, and all that imports it; import its modules one by one."""
