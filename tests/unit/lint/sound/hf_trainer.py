from transformers import Trainer, TrainingArguments

arguments = TrainingArguments("out", max_grad_norm=1.0, gradient_accumulation_steps=4)
trainer = Trainer(model=None, args=arguments)
