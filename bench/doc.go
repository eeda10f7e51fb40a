// Package bench measures how fast image layers become disks, part by part and as a whole, beside
// other engines and beside what the machine could do at best.
//
//	a reference ─ Fetch ─┐
//	an OCI layout ───────┼─► OCI layout ─► served on loopback ─► each engine, a cold store each time
//	a corpus.Shape ──────┘        └──────► each stage alone, in one thread
//
// # What is measured
//
// Every run goes through the same list, and every second run backwards, so that a machine that gets
// slower meanwhile hits all alike. Figures are medians; what runs differ by is said beside them.
//
// An engine's time is from its command's start until its store's file system is synced.
//
// Stages are measured in one pass over all layers, which does what a pull does with the same code but one
// step at a time: read 256 KiB of tar, hash them, take them apart, write what comes out. A clock is switched
// from stage to stage. So the stages add up to what one CPU would need, and what a pull takes
// beside them is the network, and what its threads cost each other.
//
// # The floor
//
// No pull of this image on this machine can be faster than the largest of
//
//	CPU time of the parts that cannot be left out, over all cores
//	bytes of the disks over the speed of the medium
//	the longest time of one part of one layer, which no second core can help with
//
// given the speed of the parts as measured in the same runs: decompressing, SHA-256 of blob and tar,
// copying each byte once, and writing. See Floor.
package bench
