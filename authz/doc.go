// Package authz says who belongs to a farm and what each may do: the farm's key
// and the charter it signs, tickets that admit machines, API keys, accounts,
// roles, the [Roster] that the coordinators replicate, and the audit of who did what.
//
// The roster is a pure state machine. [Roster.Apply] takes a [Command] and
// answers with the [Event]s it caused, or with an error that changed nothing;
// the same commands in the same order give the same roster on every machine,
// byte for byte. Time is in the command. Randomness is read only by the
// constructors of new secrets ([NewFarmKey], [NewTicket], [NewKey],
// [NewAccount]), from the reader that the caller names.
//
// So is the [Trail], the end of the audit: a chain of [Record]s, each of which names the
// one before it by its hash. A [Verifier] finds whatever was done to one.
//
// A [Charter] of a later epoch supersedes those before: by a [Succession] the farm goes on
// without the coordinators that it had.
//
// It promises that the roster holds no secret that could be used if it leaked:
// tickets and API keys are stored as SHA-256 of at least 128 random bits,
// passwords as PBKDF2. What is not granted is denied.
//
// It does not speak to the network, read the clock or touch the disk, and it
// does not know what a job is.
package authz
