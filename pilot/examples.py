"""One example for each command, which its help shows; a command may bring its own instead, as its epilog."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

EXAMPLES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "status": "pilot status --exit-code",
        "whoami": "pilot whoami --role operator",
        "version": "pilot version -o json",
        "init": "pilot init --recovery 3/5",
        "seal": "pilot seal --reason 'a stolen laptop'",
        "unseal": "pilot unseal",
        "unseal lead": "pilot unseal",
        "unseal start": "pilot unseal start",
        "unseal submit": "pilot unseal submit @custodian-2.txt",
        "unseal status": "pilot unseal status",
        "unseal exclude": "pilot unseal exclude spiffe://example.org/recover/eve",
        "unseal reset": "pilot unseal reset",
        "accept-older-store": "pilot accept-older-store --timeline 1 --revision 17",
        "secret put": "pilot secret put team/app/db password=@password.txt",
        "secret get": "pilot secret get team/app/db --field password",
        "secret list": "pilot secret list team/app",
        "secret delete": "pilot secret delete team/app/db --version 1 --version 2",
        "policy apply": "pilot policy apply policies.toml",
        "policy list": "pilot policy list",
        "policy delete": "pilot policy delete app",
        "root status": "pilot root status",
        "root rotate": "pilot root rotate --reason 'the yearly one' --wait",
        "root reshare": "pilot root reshare --threshold 4",
        "root abort": "pilot root abort --reason 'a keeper is being repaired'",
        "root continue": "pilot root continue --lost keeper-3",
        "root pause": "pilot root pause --reason 'the disk is being moved'",
        "root resume": "pilot root resume",
        "root history": "pilot root history",
        "root impact": "pilot root impact --generation 3",
        "root quarantine list": "pilot root quarantine list",
        "root quarantine retry": "pilot root quarantine retry team/app/db 2",
        "root quarantine abandon": "pilot root quarantine abandon team/app/db 2 --reason 'no backup has it'",
        "keeper list": "pilot keeper list",
        "keeper add": "pilot keeper add keeper-6 10.0.0.6:8554 spiffe://example.org/shardhold/keeper/keeper-6",
        "keeper remove": "pilot keeper remove keeper-2",
        "keeper replace": (
            "pilot keeper replace keeper-2 keeper-6 10.0.0.6:8554 spiffe://example.org/shardhold/keeper/keeper-6"
        ),
        "backup create": "pilot backup create",
        "backup list": "pilot backup list -o json",
        "backup verify": "pilot backup verify FILE.age --identity identity.txt",
        "audit tail": "pilot audit tail --lines 50 --follow",
        "audit verify": "pilot audit verify /var/lib/shardhold/audit",
        "audit accept-new-chain": "pilot audit accept-new-chain --reason 'the disk of the audit died'",
        "dev up": "pilot dev up --detach",
        "dev down": "pilot dev down",
        "dev kill": "pilot dev kill keeper-2",
        "dev restart": "pilot dev restart nexus",
        "dev env": 'eval "$(pilot dev env)"',
        "dev exec": "pilot dev exec --as /team/app -- python app.py",
        "dev identity": "pilot dev identity --as /team/app",
    }
)
