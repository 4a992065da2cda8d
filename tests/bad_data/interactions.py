"""Users and their items."""

from bad_data.case import Bad

TASK = "recommendation"
GOOD = "user,item,weight\n" + "".join(f"u{i % 7},i{i % 5},1\n" for i in range(35))
TITLES = "item,title\ni0,Zero\n"

CASES = (
    Bad("interactions-empty-file", TASK, {"a.csv": ""}, {"a.csv": "the file is empty"}),
    Bad("interactions-header-alone", TASK, {"a.csv": "user,item\n"}, {"a.csv": "the file has no rows"}),
    Bad(
        "interactions-no-columns",
        TASK,
        {"a.csv": "reader,book\nr1,b1\n"},
        {"a.csv:user": "there is no column `user`", "a.csv:item": "there is no column `item`"},
    ),
    Bad("interactions-one-user", TASK, {"a.csv": "user,item\nu1,i1\nu1,i2\n"}, {"user": "there is one user only"}),
    Bad("interactions-one-item", TASK, {"a.csv": "user,item\nu1,i1\nu2,i1\n"}, {"item": "there is one item only"}),
    Bad(
        "interactions-nan",
        TASK,
        {"a.csv": GOOD + "u1,i1,NaN\nu2,i2,inf\n"},
        {"a.csv:row 36:weight": "`nan` is not a finite number", "a.csv:row 37:weight": "`inf` is not a finite number"},
    ),
    Bad(
        "interactions-negative",
        TASK,
        {"a.csv": GOOD + "u1,i1,-1\nu2,i2,-3\n"},
        {
            "a.csv:row 36:weight": "`-1.0` is below the smallest value, 1e-09",
            "a.csv:row 37:weight": "`-3.0` is below the smallest value, 1e-09",
        },
    ),
    Bad(
        "interactions-zero",
        TASK,
        {"a.csv": GOOD + "u1,i1,0\n"},
        {"a.csv:row 36:weight": "`0.0` is below the smallest value, 1e-09"},
    ),
    Bad(
        "interactions-words-for-weights",
        TASK,
        {"a.csv": GOOD + "u1,i1,often\n"},
        {"a.csv:row 36:weight": "`often` is not a number"},
    ),
    Bad(
        "interactions-absent-ids",
        TASK,
        {"a.csv": GOOD + ",i1,1\nu1,,1\n"},
        {"a.csv:row 36:user": "there is no value", "a.csv:row 37:item": "there is no value"},
    ),
    Bad(
        "interactions-times-are-no-times",
        TASK,
        {"a.csv": "user,item,time\n" + "u1,i1,1700000000\n" * 3 + "u2,i2,yesterday\n"},
        {"a.csv:row 4:time": "`yesterday` is not a number"},
    ),
    Bad(
        "interactions-titles-without-items",
        TASK,
        {"a.csv": GOOD, "titles.csv": "id,title\ni0,Zero\n"},
        {"titles.csv:item": "there is no column `item`"},
        roles={"": "a.csv", "titles": "titles.csv"},
    ),
    Bad(
        "interactions-both-files-bad",
        TASK,
        {"a.csv": GOOD + "u1,i1,x\n", "titles.csv": TITLES + ",Nothing\n"},
        {"a.csv:row 36:weight": "`x` is not a number", "titles.csv:row 2:item": "there is no value"},
        roles={"": "a.csv", "titles": "titles.csv"},
    ),
)
