"""How the README's numbers are made. results/ has command, commit and machine beside each."""
