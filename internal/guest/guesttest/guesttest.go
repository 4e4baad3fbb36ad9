package guesttest
