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
METHODS_ON_TEXT = {"next_token": "next token", "dad": "DaD", "imitkd": "ImitKD", "dad_dagger": "DaD-DAgger"}
SYSTEMS = (
    METHODS
    | METHODS_ON_TEXT
    | {
        "teacher": "teacher",
        "student": "untrained student",
        "pre_distilled": "pre-distilled",
        "prompting_student": "prompted student",
    }
)
