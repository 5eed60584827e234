"""The study: does the density loss help on real images?"""
