"""From what a step found and did to the run file, with the samples that diagnoses need."""
