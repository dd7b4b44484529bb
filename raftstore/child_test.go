package raftstore

func childMain(role string) int { return 3 }
