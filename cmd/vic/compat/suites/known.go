package main

func notRun(suite, test string) string { return "" }
