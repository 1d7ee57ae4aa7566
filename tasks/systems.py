"""What systems and methods are called where people read of them."""

METHODS = {
    "pre_distill": "SeqKD",
    "seqkd": "SeqKD",
    "forward_kl": "forward KL",
    "reverse_kl": "reverse KL",
    "js": "JS",
    "gkd": "GKD",
    "minillm": "MiniLLM",
    "llmr": "LLMR",
}
SYSTEMS = METHODS | {"teacher": "teacher", "pre_distilled": "the start", "prompting_student": "prompted student"}
